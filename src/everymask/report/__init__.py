"""What a person sees: overlays, contact sheets, training curves and evaluation reports."""

"""Methods that find objects by boxes, and perhaps masks in them."""

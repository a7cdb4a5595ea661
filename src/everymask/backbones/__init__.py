"""Feature pyramids: any network of timm behind one interface, and their pretrained weights."""

"""Feature pyramids: any network of timm behind one interface, their pretrained weights, freezing and layer decay."""

"""Bottom-up instance segmentation: dense fields first, objects grouped from them."""

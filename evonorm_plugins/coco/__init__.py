"""Sets in COCO's format: read, checked, their boxes and masks."""

"""Images: from a file on disk to pixels, and from pixels to the square that a detector reads.

- `opening`: read a picture file (or its bytes) as RGB, whatever it is stored as.
- `letterbox`: fit pixels into a square and bring boxes back.
"""

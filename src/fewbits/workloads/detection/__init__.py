"""Detection tasks: labelled images, which of them are used, and how an answer about one image is scored.

- `coco`: read a COCO annotation file and find its images; `entries`: one entry of such a file.
- `lists`: the first images, a list of ids, a seeded draw; lists of calibration images; what two lists share.
- `tasks`: images to a task bank; `score`: an answer to a check result.
"""

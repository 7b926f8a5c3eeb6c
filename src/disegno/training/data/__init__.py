"""Data sets: `open_pairs` reads them, `doctor` examines them, `build` makes them. Nothing here loads torch.

opening.py      a folder, tar, pattern or file -> Pairs
formats/        what a data set may look like, one form a file
align.py        target and condition through the same resize, crop and flip
buckets.py      canvases of about one area, by aspect ratio
split.py        what is held out, decided by content
doctor.py       every problem, before any training
build.py        pairs from pictures and an annotator, or a function of one's own
"""

from disegno.training.data.opening import open_pairs as open_pairs
from disegno.training.data.split import split as split
from disegno.training.data.split import subset as subset

"""What a file of weights may ask for. Real files stay far below; what goes above is refused before memory is taken.

The largest files in the field, SDXL and SD3 checkpoints, have about 2,500 tensors and a header of 300 kB.
"""

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 1024
MAX_RANK = 8
MAX_DIM = 1 << 40
MAX_PICKLE_BYTES = 64 << 20
MAX_PICKLE_OPS = 5_000_000
MAX_STRING_BYTES = 1 << 20
MAX_MEMO = 1 << 20
MAX_DICT_ITEMS = 200_000
MAX_DEPTH = 64

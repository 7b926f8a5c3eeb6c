"""The prompt language: A1111's, read exactly as it reads it, in linear time, and never failing. No torch.

From what is written to what an encoder reads, in this order:

    styles.py       {prompt} of a named style
    wildcards.py    __name__: a line of a file, chosen by the picture's seed
    comments.py     # to the end of the line
    networks.py     <lora:name:0.8>
    composition.py  a AND b:0.5
    schedule.py     [from:to:when], [a|b]
    emphasis.py     (a:1.2), [a], BREAK
"""

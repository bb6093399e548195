"""fewbits: how few bits can this model live with, on this machine, for this work?"""

__version__ = "0.1.0"

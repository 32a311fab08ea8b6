"""Prints how closely lowland follows each release; with ``--files``, each run."""

import sys

import torch

from official.table import of_files, of_releases

if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in of_files() if sys.argv[1:] == ["--files"] else of_releases():
        print(row, flush=True)

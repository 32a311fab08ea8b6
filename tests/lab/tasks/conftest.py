"""Data files made up for tests."""

from data_files import cifar10_files, cifar100_files, fashion_files, put, real
from text_files import text_files

__all__ = ["cifar10_files", "cifar100_files", "fashion_files", "put", "real", "text_files"]

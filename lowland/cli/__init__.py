"""The command line: one small file per command, made from dataclasses."""

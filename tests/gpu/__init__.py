"""What only a GPU can show, checked by one command: ``make gpu``, or ``python -m gpu`` with tests/ in PYTHONPATH.

Every module with a function ``checks`` is a section. On a machine without a GPU the sections and checks that need one
are skipped, each with its reason, and the others run.
"""

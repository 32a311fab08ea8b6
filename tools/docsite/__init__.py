"""The pages of the documentation that are generated, for the hook of mkdocs in ``tools/mkdocs_hook.py``."""

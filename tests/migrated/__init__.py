"""The rules that the page on migration starts from, written from their formulas, to run the page's old loops."""

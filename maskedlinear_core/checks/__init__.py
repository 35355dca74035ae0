"""Every check and every message text of both twins (contract S10).

A message says what was expected, what came and what to do. The checks see shapes and dtype names only, so
one wrong call gives one text and one exception class, whichever twin was called.
"""

"""Random trials of everything that a user can type or hand over: `make fuzz SECONDS=600 SEED=0`.

Four kinds, each a module that says what is tried and what may come of it:

    commands  random command lines of all entry points           commands.py
    files     files of every format that is read, damaged        files.py, damage.py, reads.py
    flips     single bits of checkpoints, weights, packed files  files.py
    kills     runs that are stopped at random and resumed        kills.py

`place.py` writes the good files, `trial.py` runs one program in an empty folder and judges how it ended, `__main__.py`
deals out the cases and prints the table. Case `i` of a kind depends on the seed and `i` alone, so each can be run
again by itself: `python -m tools.fuzz --seed 0 --only commands:137`.
"""

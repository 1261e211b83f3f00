"""What a study claims, and whether its runs bear it out: `study.criteria`.

grammar.py reads a criterion, records.py fetches what was recorded, judge.py turns both into a verdict, words.py
says it. docs/studies.md is the reference.
"""

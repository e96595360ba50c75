"""The verbs of the command line, one short function each: ask the studio, show the answer.

Heavy modules are imported by the verbs that need them.
"""

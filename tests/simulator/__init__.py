"""Random histories with crashes at every await, and what must hold of them.

``history`` makes the input, ``world`` runs it and breaks things, ``laws`` judges what lies on
the topics against a reference run without a crash, ``mutants`` take one guard away each.
"""

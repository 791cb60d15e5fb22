"""Real processes on Apache Kafka, broken in every way that one machine allows, and their judge.

``checker`` judges what lies on the topics by a reference run of the core; ``tamper`` shows that
each of its counters can rise; ``world`` runs cluster, processes and traffic; ``scenarios`` breaks
them.
"""

"""A search at work: one process that leads, others that train its trials, on this machine or on a cluster's nodes.

`lead.py` the order of a search's work; `roster.py` its trials' folders; `handing.py` which trial goes to which process;
`wave.py` such a process, `riding.py` what it does: trials in the slots of one loop; `sharing.py` what they share;
`clusters.py` processes on the nodes of a Ray cluster. Which values are tried, who is weak, what was found: `trials/`.
"""

"""The start switch on a host: what a run is started under, and what it may spend.

exec ──asking──▶ door ─▶ lessee ◀─▶ {lease_state, lease_check, spec} (pure)
                           │  ├─▶ errands: the verifier, the gate
                           │  └─▶ the log, through the daemon's hands
                           ▼
                      lease_files, pin (what survives)
"""

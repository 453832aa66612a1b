"""The start switch on a host: what a run is started under, and what it may spend.

exec ──asking──▶ door ─▶ lessee ◀─▶ {lease_state, lease_check, lease_answer, spec} (pure)
                           ├─▶ permits, leasing ─▶ errands: the verifier
                           ├─▶ gating, ending ───▶ errands: the gate
                           ├─▶ timers
                           ▼
                         jobs ─▶ the log, through the daemon's hands
                           ▼
                         lease_files, pin, metering (what survives)
"""

"""Totals that are read, not computed: sums of estimates by hour, day and month, kept beside the rows they are of.

The rows stay the truth. A sum is made with one chip table, is dropped when there is another one, and is corrected
when a row changes: what a log's day put in is taken out, and what it gives now is put in. Estimates are made row
by row, as an audit makes them, and added as Python integers.

The verifier's log says what changed. Its leaves are dense and in the order of commits, so "all segments up to leaf
n are in the sums" is one number, and ingest writes nothing for this but each segment's hours. A reader adds what
leaves after that number changed, with the code that the next pass stores it with: totals are exact at any moment.

spans       hours, days, months, and ranges cut into them
parts       a sum, and its bytes
sources     rows, chips and declarations of the logs that changed
delta       what changed, as parts to add
keeper      the thread that stores it
silence     what is missing up to now, for each log
view        stored sums and the delta together
totals      pages of workloads and of spans;  apart: pages by node or chip, from rows
"""

"""All operators on bundles."""

from tests.faults.tamper import bundle_entries, bundle_files, bundle_keys

FORGERIES = [*bundle_files.forgery, *bundle_entries.forgery, *bundle_keys.forgery]

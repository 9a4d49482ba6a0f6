"""Put the scores of several runs into the paper's tables: median and best over seeds.

Runs of one name make one row, which says over which seeds of training and of sampling it is.
Records that were measured in different ways are refused.
"""

from evonorm_plugins.text_table import aligned

EXAMPLES = """
examples:
  evonorm eval table runs/*/metrics.json
  three trainings of biggan.train --seeds 0,1,2, scored one by one:
    evonorm eval table output/imagenet128_EvoNormS0/seed*/metrics.json
  evonorm eval table --json runs/*/metrics.json
"""


def add_arguments(parser):
    parser.add_argument("records", nargs="+", metavar="METRICS.json", help='written with "--out"')
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")


def run(args):
    from evonorm_plugins.metrics.protocol import as_json
    from evonorm_plugins.metrics.table import read_records, rows_of, text_rows

    records = read_records(args.records)
    if args.json:
        rows = {"kind": "table", "rows": rows_of(records), "protocol": records[0]["protocol"]}
        print(as_json(rows | {"records": args.records, "command": args.command_line}))
        return 0
    print(aligned(text_rows(records)))
    protocol = {k: v for k, v in records[0]["protocol"].items() if v is not None}
    print(f"\nprotocol: {', '.join(f'{k} {v}' for k, v in protocol.items())}")
    return 0

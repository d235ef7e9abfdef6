"""Count the outcomes of a table, without Spark: python examples/query.py demo-data/table"""

import sys

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

COUNTS = """
    SELECT model_id, coalesce(error['code'], 'embedding') AS outcome, count(*) AS rows
    FROM outcomes GROUP BY 1, 2 ORDER BY 1, 2
"""

outcomes = QueryBuilder().register("outcomes", DeltaTable(sys.argv[1]))
print(pa.table(outcomes.execute(COUNTS)).to_pandas().to_string(index=False))

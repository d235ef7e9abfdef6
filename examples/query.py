"""Count the outcomes of a table, without Spark: python examples/query.py demo-data/table"""

import sys

from deltalake import DeltaTable

table = DeltaTable(sys.argv[1]).to_pyarrow_table(columns=["model_id", "error"]).to_pandas()
outcome = table["error"].map(lambda error: error["code"] if error else "embedding")
print(table.groupby([table["model_id"], outcome]).size())

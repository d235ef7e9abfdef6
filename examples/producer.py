"""Send one picture as bytes and one as a reference: python examples/producer.py A.jpg B.jpg"""

import json
import sys
from pathlib import Path

from kafka import KafkaProducer

first, second = Path(sys.argv[1]), Path(sys.argv[2])
producer = KafkaProducer(bootstrap_servers="localhost:9092", acks="all", max_request_size=10**7)
producer.send("images", key=first.name.encode(), value=first.read_bytes())
producer.send(
    "images", value=json.dumps({"uri": second.absolute().as_uri(), "shop": "42"}).encode()
)
producer.flush()

import traceback
from io import BytesIO
import pytest
from PIL import Image
from embedstream.kafka.topics import check_topics
from embedstream.stream.preflight import check_start
from streams import Topic, image, drain
from pictures import encoded
def test_kafka(spark, topic, configure, broker, capsys):
    topic.send([image("a", encoded(Image.new("RGB",(8,8))))]*3)
    base=configure()
    def go(label, **kafka):
        merged={"bootstrap_servers": topic.bootstrap_servers, "subscribe": topic.name, **kafka}
        try:
            config=configure(kafka=merged)
        except Exception as e:
            out=f"CONFIG {e}"
        else:
            try: out="OK "+str(check_topics(spark, config.kafka))[:150]
            except BaseException as e: out=f"{type(e).__name__} {e}"[:400]
        with capsys.disabled(): print("\nKAFKA", label, "->", out)
    go("plain")
    go("pattern ((", subscribe=None, subscribe_pattern="((")
    go("pattern *", subscribe=None, subscribe_pattern="*.img")
    go("assign 99", subscribe=None, assign={topic.name:[99]})
    go("assign 0 99", subscribe=None, assign={topic.name:[0,99]})
    go("scheme", bootstrap_servers="kafka://localhost:9092")
    go("no port", bootstrap_servers="localhost")
    go("port", bootstrap_servers="localhost:99999")
    go("semicolon", bootstrap_servers="localhost:1;other:2")
    go("space", bootstrap_servers=" "+topic.bootstrap_servers+" , ")
    go("unknown host", bootstrap_servers="nohost.invalid:9092")
    go("http", bootstrap_servers=broker.bootstrap_servers.replace("localhost","http://localhost"))
    go("dup topics", subscribe=f"{topic.name},{topic.name}")
    for label,so in [("unknown topic",{"nope":{0:0}}),("one partition",{topic.name:{0:0}}),("too far",{topic.name:{0:10**12,1:0}}),("extra partition",{topic.name:{0:0,1:0,2:0,3:0,4:0,5:0}})]:
        merged={"bootstrap_servers": topic.bootstrap_servers, "subscribe": topic.name, "starting_offsets": so}
        try:
            config=configure(kafka=merged); found=[]
            ok=check_start(spark,config,found.append)
            out=f"check {'passes' if ok else 'fails'} {[f for f in found if 'opic' in str(f)][:1]}"[:300]
            if ok:
                try: drain(spark,config); out+=" | drained"
                except BaseException as e: out+=f" | run: {type(e).__name__} {e}"[:500]
        except BaseException as e: out=f"{type(e).__name__} {e}"[:400]
        with capsys.disabled(): print("\nKAFKA offsets", label, "->", out)

"""The settings of kafka-python, by which Kafka is reached without Spark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from embedstream.config.publishing import PublishConfig
from embedstream.config.secrets import reveal
from embedstream.config.sections import KafkaConfig
from embedstream_core.errors import SetupError

__all__ = ["choose_target", "convert_options"]

# Settings of Kafka's Java client that kafka-python has by another name.
_NAMES = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "ssl.truststore.location": "ssl_cafile",
    "ssl.keystore.location": "ssl_certfile",
    "ssl.key.password": "ssl_password",
}
_LOGIN = re.compile(r"""(username|password)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")


def convert_options(options: Mapping[str, str | SecretStr]) -> dict[str, Any]:
    """Return `kafka.options`, which are of Kafka's Java client, as settings of kafka-python.

    Raises:
        SetupError: the certificates are in a Java keystore, which kafka-python cannot read.
    """
    given = {name.lower().removeprefix("kafka."): value for name, value in reveal(options).items()}
    for store in ("truststore", "keystore"):
        if f"ssl.{store}.location" in given and given.get(f"ssl.{store}.type", "JKS") != "PEM":
            raise SetupError(
                f"kafka-python cannot read kafka.ssl.{store}.location, a Java keystore; "
                f"give one in PEM with kafka.ssl.{store}.type: PEM"
            )
    settings: dict[str, Any] = {
        _NAMES[name]: value for name, value in given.items() if name in _NAMES
    }
    for key, quoted in _LOGIN.findall(given.get("sasl.jaas.config", "")):
        settings[f"sasl_plain_{key}"] = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    return settings


def choose_target(kafka: KafkaConfig, publish: PublishConfig) -> tuple[str, dict[str, Any]]:
    """Return the brokers to publish to, and a producer's settings for them.

    Without brokers of its own, `publish` takes those of `kafka` with their credentials, which the
    settings of `publish.client` replace one by one.

    Raises:
        SetupError: the credentials of `kafka` cannot be used, or a setting is not of its type.
    """
    settings = {name: _convert_text(name, text) for name, text in reveal(publish.client).items()}
    if publish.bootstrap_servers is not None:
        return publish.bootstrap_servers, settings
    return kafka.bootstrap_servers, {**convert_options(kafka.options), **settings}


def _convert_text(name: str, text: str) -> Any:
    """Return a setting in the type that kafka-python takes."""
    from kafka import KafkaProducer

    default = KafkaProducer.DEFAULT_CONFIG.get(name)
    if isinstance(default, bool) and text in ("true", "false"):
        return text == "true"
    if isinstance(default, bool | int):
        try:
            return int(text)
        except ValueError:
            wanted = "true or false" if isinstance(default, bool) else "a whole number"
            raise SetupError(f"publish.client: {name} has to be {wanted}, not '{text}'") from None
    return text

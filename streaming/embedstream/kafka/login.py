"""Logins that kafka-python cannot make, refused before it tries.

It reports any failed login as `Unable to bootstrap`, after ten seconds and without the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra

__all__ = ["check_login"]


def check_login(settings: Mapping[str, Any]) -> None:
    """Check the SASL mechanism in settings of kafka-python; connects to no broker.

    Raises:
        SetupError: kafka-python does not have the mechanism, or it is OAUTHBEARER, whose tokens
            need a Python object; for AWS_MSK_IAM, there are no AWS credentials or no region.
        MissingExtra: the package that signs for AWS_MSK_IAM is not installed.
    """
    from kafka.net.sasl import SASL_MECHANISMS

    mechanism = settings.get("sasl_mechanism")
    if mechanism == "AWS_MSK_IAM":
        _check_aws()
    elif mechanism == "OAUTHBEARER" or mechanism not in {None, *SASL_MECHANISMS}:
        raise SetupError(
            f"messages cannot be sent, or read again for pictures, with the SASL mechanism "
            f"{mechanism}: outside of Spark the client is kafka-python, which logs in with PLAIN, "
            "SCRAM, AWS_MSK_IAM or GSSAPI; what the stream reads from Kafka is not affected"
        )


def _check_aws() -> None:
    with require_extra("s3", feature="the SASL mechanism AWS_MSK_IAM outside of Spark"):
        from botocore.session import Session
    session = Session()
    # Kafka's Java client takes the region from the broker's name instead.
    if session.get_config_variable("region") is None:
        raise SetupError(
            "the SASL mechanism AWS_MSK_IAM needs the cluster's region outside of Spark; set "
            "AWS_DEFAULT_REGION"
        )
    if session.get_credentials() is None:
        raise SetupError(
            "the SASL mechanism AWS_MSK_IAM finds no AWS credentials; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
        )

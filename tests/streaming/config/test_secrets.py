"""What is a secret, by the names that Spark, Hadoop and Kafka give to their settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embedstream.config.errors import ConfigError
from embedstream.config.load import load_config
from embedstream.config.secrets import holds_secret, reveal
from embedstream.config.sections import PipelineConfig, SparkConfig, StreamConfig
from embedstream.spark.launch import build_settings

LOCAL = Path(__file__).parents[3] / "conf" / "local.yaml"
CANARY = "c4n4ry"

SECRET = [
    "kafka.sasl.oauthbearer.client.credentials.client.secret",
    "kafka.sasl.oauthbearer.assertion.private.key.passphrase",
    "kafka.ssl.key.password",
    "kafka.ssl.keystore.key",
    "kafka.ssl.keystore.password",
    "kafka.ssl.truststore.password",
    "spark.authenticate.secret",
    "spark.executorEnv.AWS_ACCESS_KEY_ID",
    "spark.executorEnv.AWS_SECRET_ACCESS_KEY",
    "spark.executorEnv.HF_TOKEN",
    "spark.hadoop.fs.azure.account.key.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.client.secret",
    "spark.hadoop.fs.azure.account.oauth2.client.secret.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.refresh.token",
    "spark.hadoop.fs.azure.account.oauth2.user.password",
    "spark.hadoop.fs.azure.client-provided-encryption-key",
    "spark.hadoop.fs.azure.sas.container.store.blob.core.windows.net",
    "spark.hadoop.fs.azure.sas.fixed.token.store.dfs.core.windows.net",
    "spark.hadoop.fs.gs.auth.client.secret",
    "spark.hadoop.fs.gs.auth.service.account.private.key",
    "spark.hadoop.fs.gs.encryption.key",
    "spark.hadoop.fs.s3.awsSecretAccessKey",
    "spark.hadoop.fs.s3a.access.key",
    "spark.hadoop.fs.s3a.bucket.images.access.key",
    "spark.hadoop.fs.s3a.encryption.key",
    "spark.hadoop.fs.s3a.secret.key",
    "spark.hadoop.fs.s3a.server-side-encryption.key",
    "spark.hadoop.fs.s3a.session.token",
    "spark.hadoop.javax.jdo.option.ConnectionPassword",
    "spark.kubernetes.authenticate.driver.oauthToken",
    "spark.ssl.keyPassword",
    "spark.ssl.keyStorePassword",
    "fs.azure.account.key.store.dfs.core.windows.net",
    "kafka.basic.auth.user.info",
    "spark.executorEnv.DB_PASS",
    "spark.executorEnv.DB_PWD",
    "spark.hadoop.dfs.adls.oauth2.credential",
    "spark.hadoop.fs.b2.applicationKey",
    "spark.redis.auth",
    "spark.sql.catalog.main.header.Authorization",
    "sasl_plain_password",
    "ssl_password",
]

NOT_SECRET = [
    "kafka.client.id",
    "kafka.sasl.kerberos.service.name",
    "kafka.sasl.mechanism",
    "kafka.sasl.oauthbearer.client.credentials.client.id",
    "kafka.sasl.oauthbearer.assertion.private.key.file",
    "kafka.sasl.oauthbearer.token.endpoint.url",
    "kafka.security.protocol",
    "kafka.ssl.key.store.type",
    "kafka.ssl.keystore.certificate.chain",
    "kafka.ssl.keystore.location",
    "kafka.ssl.keystore.type",
    "kafka.ssl.truststore.certificates",
    "kafka.ssl.truststore.location",
    "kafka.ssl.truststore.type",
    "spark.authenticate",
    "spark.authenticate.secret.file",
    "spark.authenticate.secretBitLength",
    "spark.eventLog.dir",
    "spark.hadoop.fs.azure.account.auth.type.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.keyprovider.store.blob.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth.provider.type",
    "spark.hadoop.fs.azure.account.oauth2.client.endpoint.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.client.id.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.refresh.token.endpoint.store.dfs.core.windows.net",
    "spark.hadoop.fs.azure.account.oauth2.token.file",
    "spark.hadoop.fs.azure.sas.token.provider.type.store.dfs.core.windows.net",
    "spark.hadoop.fs.gs.auth.access.token.provider.impl",
    "spark.hadoop.fs.gs.auth.service.account.json.keyfile",
    "spark.hadoop.fs.s3a.access.style",
    "spark.hadoop.fs.s3a.assumed.role.credentials.provider",
    "spark.hadoop.fs.s3a.aws.credentials.provider",
    "spark.hadoop.fs.s3a.delegation.token.binding",
    "spark.hadoop.fs.s3a.encryption.algorithm",
    "spark.hadoop.fs.s3a.path.style.access",
    "spark.hadoop.hadoop.security.authentication",
    "spark.hadoop.hadoop.security.credential.provider.path",
    "spark.io.encryption.keySizeBits",
    "spark.io.encryption.keygen.algorithm",
    "spark.kafka.clusters.main.sasl.token.mechanism",
    "spark.kerberos.keytab",
    "spark.kubernetes.authenticate.driver.oauthTokenFile",
    "spark.kubernetes.driver.secretKeyRef.HF_TOKEN",
    "spark.kubernetes.driver.secrets.store",
    "spark.limits.tokens.per.second",
    "spark.redaction.regex",
    "spark.security.credentials.renewalRatio",
    "spark.sql.shuffle.partitions",
    "spark.ssl.keyStore",
    "spark.executorEnv.GOOGLE_APPLICATION_CREDENTIALS",
    "spark.hadoop.fs.s3a.session.token.duration",
    "spark.kubernetes.container.image.pullSecrets",
    "spark.sql.tokenizer",
]


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_recognized_by_its_name(name: str) -> None:
    assert holds_secret(name, CANARY)
    assert not holds_secret(name, "")


@pytest.mark.parametrize("name", NOT_SECRET)
def test_a_setting_about_a_secret_is_not_a_secret(name: str) -> None:
    assert not holds_secret(name, "some.value")


def test_a_switch_is_not_a_secret() -> None:
    assert not holds_secret("spark.hadoop.fs.azure.enable.delegation.token", "true")


@pytest.mark.parametrize(
    "value",
    [
        f'Module required username="me" password="{CANARY}";',
        f"Module required clientId=me clientSecret={CANARY};",
        f"-Dhttp.proxyPassword={CANARY}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={CANARY}==",
        f"Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=b;SharedAccessKey={CANARY}",
        f"BlobEndpoint=https://a;SharedAccessSignature=sv=1&sig={CANARY}",
        f"https://a.blob.core.windows.net/c?sv=1&sig={CANARY}",
        f"jdbc:postgresql://host/db?user=me&password={CANARY}",
        f"https://me:{CANARY}@proxy:3128",
        f"jdbc:postgresql://me:{CANARY}@host/db",
        f"jdbc:oracle:thin:me/{CANARY}@//host:1521/db",
        f"https://one/maven,https://me:{CANARY}@two/maven",
        f"-Daws.secretKey={CANARY}",
        f"Authorization: Bearer {CANARY}{CANARY}",
        f"-----BEGIN PRIVATE KEY----- {CANARY} -----END PRIVATE KEY-----",
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{CANARY}",
    ],
)
def test_a_secret_is_recognized_by_its_value(value: str) -> None:
    assert holds_secret("kafka.x", value)


@pytest.mark.parametrize(
    "value",
    [
        "com.sun.security.auth.module.Krb5LoginModule required keyTab=/etc/me.keytab;",
        'Module required username="me" password="${env:PASSWORD}";',
        "Endpoint=sb://a.servicebus.windows.net/;SharedAccessKeyName=b",
        "abfss://container@store.dfs.core.windows.net/folder",
        "https://proxy:3128/a@b",
        "-----BEGIN CERTIFICATE----- x -----END CERTIFICATE-----",
        "-Dsecret.file=/etc/secret",
    ],
)
def test_a_harmless_value_is_not_a_secret(value: str) -> None:
    assert not holds_secret("kafka.x", value)


def test_a_pattern_of_secrets_is_not_a_secret() -> None:
    assert not holds_secret("spark.redaction.string.regex", "password=.*")


def options(*names: str) -> list[str]:
    return [f"{name.partition('.')[0]}.options.{name}" for name in names]


@pytest.mark.parametrize("key", options(*(name for name in SECRET if name[:2] in ("ka", "sp"))))
def test_a_secret_in_plain_text_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(LOCAL, [f"{key}={CANARY}"], environment={})
    _, name = key.split(".options.")
    assert f"'{name}' holds a secret in plain text; give it as env:NAME or file:PATH" in str(
        error.value
    )
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("key", options(*(name for name in SECRET if name[:2] in ("ka", "sp"))))
def test_a_secret_by_reference_is_accepted(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", CANARY)
    config: StreamConfig = load_config(LOCAL, [f"{key}=env:CANARY"], environment={})
    section = config.kafka if key.startswith("kafka") else config.spark
    assert list(reveal(section.options).values()) == [CANARY]
    assert CANARY not in repr(config)


@pytest.mark.parametrize("name", ["fs.azure.account.key.store.dfs.core.windows.net", "api.token"])
def test_a_table_property_may_not_be_a_secret(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' holds a secret, which") as error:
        load_config(LOCAL, [f"table.properties.{name}={CANARY}"], environment={})
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("key", ["table.path", "checkpoint"])
def test_a_password_in_a_location_is_refused(key: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{key}: a location must not contain a password"
    ) as error:
        load_config(LOCAL, [f"{key}=s3a://me:{CANARY}@bucket/table"], environment={})
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("name", SECRET)
def test_spark_hides_every_secret(name: str) -> None:
    settings = build_settings(SparkConfig(jars="provided"), PipelineConfig())
    for setting in ("spark.redaction.regex", "spark.sql.redaction.options.regex"):
        # Spark lowers the case of a data source's options.
        assert re.search(settings[setting], name)
        assert re.search(settings[setting], name.lower())

"""A real S3 server process on loopback, with the environment that finds it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def s3_server():
    """URI of an empty bucket; clients find the server by the environment, which child processes inherit."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
        }
        with patch.dict(os.environ, environment):
            import boto3
            from botocore.exceptions import EndpointConnectionError

            client = boto3.client("s3", region_name="us-east-1")
            for _ in range(100):
                try:
                    client.create_bucket(Bucket="bucket")
                except EndpointConnectionError:
                    time.sleep(0.2)
                else:
                    break
            yield "s3://bucket"
    finally:
        server.terminate()
        server.wait()

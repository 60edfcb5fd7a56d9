"""What roles in AWS may do is what the code asks for, and no more."""

import ast
import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path("infra/aws")
POLICIES = sorted(FOLDER.glob("iam-*.json"))
ACTIONS = {  # what S3 checks before it does an operation of its API
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
}
ASKED_OF_BUCKET = {"s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListBucketVersions", "s3:GetBucketLocation"}


def document(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def statements(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["Statement"]
    return found


def listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allowed(name: str, action: str, resource: str) -> bool:
    """Whether a role's policy lets it do this; conditions are not looked at."""
    return any(
        one["Effect"] == "Allow"
        and action in listed(one["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(one["Resource"]))
        for one in statements(FOLDER / f"{name}.json")
    )


@cache
def s3() -> ast.Module:
    return ast.parse(Path("pipelines/s3.py").read_text())


def calls() -> list[ast.Call]:
    """Every call of the S3 client in the store."""
    return [
        node
        for node in ast.walk(s3())
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "_s3"
    ]


def operation(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr != "get_paginator":
        return call.func.attr
    (name,) = call.args
    assert isinstance(name, ast.Constant)
    return str(name.value)


def may(name: str, place: str) -> set[str]:
    """The operations of the store that a role may do below a place of the bucket."""
    found = set()
    for one in {operation(call) for call in calls()}:
        action = ACTIONS[one]
        where = "arn:aws:s3:::BUCKET" + ("" if action in ASKED_OF_BUCKET else f"/{place}/x")
        found |= {one} if allowed(name, action, where) else set()
    return found


@pytest.mark.parametrize(
    "path", [*POLICIES, FOLDER / "bucket-policy.json", *FOLDER.glob("trust-*.json")], ids=lambda p: p.name
)
def test_a_policy_is_one(path: Path) -> None:
    policy = json.loads(path.read_text())
    assert policy.keys() == {"Version", "Statement"} and policy["Version"] == "2012-10-17"
    for one in policy["Statement"]:
        assert one.keys() <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert one["Effect"] in ("Allow", "Deny") and one["Sid"].isalnum()
        assert ("Principal" in one) == (not path.name.startswith("iam-"))
    names = [one["Sid"] for one in policy["Statement"]]
    assert len(set(names)) == len(names)
    assert len(json.dumps(policy, separators=(",", ":"))) <= 6144  # of a managed policy; a bucket's may be longer


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_nothing_is_allowed_by_a_star(path: Path) -> None:
    for one in statements(path):
        assert not any("*" in action for action in listed(one["Action"]))
        if "*" in listed(one["Resource"]):  # looking has no resource in EC2; it is bound to the region
            assert all(action.startswith("ec2:Describe") for action in listed(one["Action"]))
            assert one["Condition"] == {"StringEquals": {"aws:RequestedRegion": "REGION"}}


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_every_action_is_one_that_aws_has(path: Path) -> None:
    from botocore.session import get_session  # type: ignore[import-untyped]

    session = get_session()
    for action in (one for statement in statements(path) for one in listed(statement["Action"])):
        service, _, name = action.partition(":")
        others = {"ListBucket", "ListBucketVersions", "ListBucketMultipartUploads", "DeleteObjectVersion", "PassRole"}
        others |= {"ListMultipartUploadParts"}  # named otherwise than the operation that it allows
        assert name in others or name in session.get_service_model(service).operation_names, action


def test_data_work_writes_datasets_and_deletes_nothing() -> None:
    everything = {operation(call) for call in calls()}
    assert may("iam-data", "datasets") == everything - {"delete_object"}
    assert may("iam-data", "models") & {"put_object", "delete_object"} == set()
    assert "get_object" in may("iam-data", "models")


def test_training_drops_its_old_checkpoints_and_nothing_else() -> None:
    everything = {operation(call) for call in calls()}
    for role in ("iam-train", "iam-head"):
        assert may(role, "checkpoints") == everything
        assert "delete_object" not in may(role, "datasets") | may(role, "models") | may(role, "runs")


def test_forgetting_is_the_one_right_to_delete_samples() -> None:
    everything = {operation(call) for call in calls()}
    assert may("iam-forget", "datasets") == everything
    assert [path.stem for path in POLICIES if "delete_object" in may(path.stem, "datasets")] == ["iam-forget"]


def test_an_auditor_only_reads() -> None:
    changing = {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload", "delete_object"}
    assert may("iam-audit", "datasets") & changing == set()
    assert {"get_object", "head_object", "list_objects_v2", "list_multipart_uploads"} <= may("iam-audit", "datasets")


def test_machines_are_started_and_ended_by_their_tag_alone() -> None:
    for name in ("iam-head", "iam-launch"):
        for one in statements(FOLDER / f"{name}.json"):
            instances = any(place.endswith(":instance/*") for place in listed(one["Resource"]))
            if instances:
                assert "harmon" in json.dumps(one["Condition"]) or "ec2:CreateAction" in json.dumps(one["Condition"])
            if "iam:PassRole" in listed(one["Action"]):
                assert one["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
                assert not any("*" in role for role in listed(one["Resource"]))


def test_a_role_of_kubernetes_is_one_accounts_alone() -> None:
    (rule,) = (one for one in document("trust-eks")["Statement"] if "Federated" in one["Principal"])
    assert rule["Condition"].keys() == {"StringEquals"}  # with StringLike a star would let every account in
    assert rule["Condition"]["StringEquals"].keys() == {"OIDC:aud", "OIDC:sub"}
    overlay = Path("infra/kubernetes/overlays/aws/kustomization.yaml").read_text()
    given = {line.rpartition("/")[2] for line in overlay.splitlines() if "eks.amazonaws.com/role-arn" in line}
    assert {f"iam-{name.removeprefix('harmon-')}" for name in given} <= {path.stem for path in POLICIES} and given


def test_roles_that_the_launcher_names_are_there_and_may_be_given() -> None:
    given = {
        place.rpartition("/")[2]
        for one in statements(FOLDER / "iam-launch.json")
        if "iam:PassRole" in listed(one["Action"])
        for place in listed(one["Resource"])
    }
    assert {f"iam-{name.removeprefix('harmon-')}" for name in given} <= {path.stem for path in POLICIES}
    for path in FOLDER.glob("*.yaml"):
        cluster = yaml.safe_load(path.read_text())
        for node in cluster["available_node_types"].values():
            profile = node["node_config"].get("IamInstanceProfile", {})
            name = profile.get("Name") or profile.get("Arn", "").rpartition("/")[2]
            assert name in given, path


def test_every_write_has_the_condition_that_the_bucket_asks_for() -> None:
    """Else the policy of the bucket would refuse it; UploadPart and CreateMultipartUpload take none, and are let by.

    The one write without is `replace`, by which a trainer renews its hold on a stage: that lies with the checkpoints.
    """
    (rule,) = (one for one in document("bucket-policy")["Statement"] if one["Action"] == "s3:PutObject")
    assert rule["Effect"] == "Deny" and rule["Resource"] == "arn:aws:s3:::BUCKET/datasets/*"
    assert rule["Condition"] == {"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}}
    writing = [call for call in calls() if operation(call) in ("put_object", "complete_multipart_upload")]
    free = [call for call in writing if "IfNoneMatch" not in {word.arg for word in call.keywords}]
    assert len(writing) == 3 and len(free) == 1
    replace = next(node for node in ast.walk(s3()) if isinstance(node, ast.FunctionDef) and node.name == "replace")
    assert free[0].lineno in range(replace.lineno, (replace.end_lineno or 0) + 1)


def test_s3_takes_the_lifecycle_rules() -> None:
    from botocore.session import get_session
    from botocore.validate import validate_parameters  # type: ignore[import-untyped]

    shape = get_session().get_service_model("s3").operation_model("PutBucketLifecycleConfiguration").input_shape
    validate_parameters({"Bucket": "bucket", "LifecycleConfiguration": document("lifecycle")}, shape)
    rules = document("lifecycle")["Rules"]
    assert len({rule["ID"] for rule in rules}) == len(rules)


def test_no_rule_takes_away_what_a_manifest_lists() -> None:
    for rule in document("lifecycle")["Rules"]:
        prefix = rule["Filter"].get("Prefix", rule["Filter"].get("And", {}).get("Prefix"))
        if "Days" in rule.get("Expiration", {}):
            assert prefix == "runs/logs/"


def test_uploads_that_nobody_finished_are_dropped_everywhere() -> None:
    (rule,) = (one for one in document("lifecycle")["Rules"] if "AbortIncompleteMultipartUpload" in one)
    assert rule["Filter"] == {"Prefix": ""} and rule["Status"] == "Enabled"

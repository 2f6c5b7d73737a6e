"""The fields that KubeRay 1.7 knows of its ray.io/v1 resources, and those of Kubernetes 1.28 that our manifests use.

Written by hand from the operator's field reference: an unknown field is refused here as the API server with strict
validation would refuse it.
"""

STRING, BOOLEAN, INTEGER, NUMBER = ({"type": kind} for kind in ("string", "boolean", "integer", "number"))
STRINGS = {"type": "object", "additionalProperties": STRING}
ANY = {"type": "object"}


def obj(required=(), **fields):
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def array(items):
    return {"type": "array", "items": items}


def enum(*values):
    return {"enum": list(values)}


METADATA = obj(["name"], name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
QUANTITIES = {
    "type": "object",
    "propertyNames": {"enum": ["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"]},
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"},
}
SECRET_KEY = obj(["name", "key"], name=STRING, key=STRING, optional=BOOLEAN)
FROM_SECRET = obj(["secretKeyRef"], secretKeyRef=SECRET_KEY)
CONTAINER = obj(
    ["name", "image"],
    name=STRING,
    image=STRING,
    imagePullPolicy=enum("Always", "IfNotPresent", "Never"),
    command=array(STRING),
    args=array(STRING),
    env=array(obj(["name"], name=STRING, value=STRING, valueFrom=FROM_SECRET)),
    envFrom=array(obj(secretRef=obj(["name"], name=STRING, optional=BOOLEAN), configMapRef=ANY, prefix=STRING)),
    ports=array(obj(["containerPort"], containerPort=INTEGER, name=STRING, protocol=enum("TCP", "UDP"))),
    resources=obj(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=array(obj(["name", "mountPath"], name=STRING, mountPath=STRING, subPath=STRING, readOnly=BOOLEAN)),
    securityContext=ANY,
    lifecycle=ANY,
    livenessProbe=ANY,
    readinessProbe=ANY,
)
VOLUME = obj(
    ["name"],
    name=STRING,
    persistentVolumeClaim=obj(["claimName"], claimName=STRING, readOnly=BOOLEAN),
    emptyDir=obj(medium=enum("", "Memory"), sizeLimit=STRING),
    configMap=obj(["name"], name=STRING, optional=BOOLEAN, items=array(ANY)),
    secret=obj(["secretName"], secretName=STRING, optional=BOOLEAN, items=array(ANY)),
)
TOLERATION = obj(key=STRING, operator=enum("Exists", "Equal"), value=STRING, effect=STRING, tolerationSeconds=INTEGER)
POD = obj(
    ["spec"],
    metadata=obj(labels=STRINGS, annotations=STRINGS),
    spec=obj(
        ["containers"],
        containers=array(CONTAINER),
        initContainers=array(CONTAINER),
        volumes=array(VOLUME),
        tolerations=array(TOLERATION),
        nodeSelector=STRINGS,
        affinity=ANY,
        serviceAccountName=STRING,
        automountServiceAccountToken=BOOLEAN,
        imagePullSecrets=array(obj(["name"], name=STRING)),
        priorityClassName=STRING,
        restartPolicy=enum("Always", "OnFailure", "Never"),
        securityContext=ANY,
        terminationGracePeriodSeconds=INTEGER,
        runtimeClassName=STRING,
    ),
)
MANAGED_BY = enum("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
AUTOSCALER = obj(
    resources=ANY,
    image=STRING,
    imagePullPolicy=STRING,
    securityContext=ANY,
    idleTimeoutSeconds=INTEGER,
    upscalingMode=enum("Default", "Aggressive", "Conservative"),
    version=enum("v1", "v2"),
    env=array(ANY),
    envFrom=array(ANY),
    volumeMounts=array(ANY),
    command=array(STRING),
    args=array(STRING),
)
HEAD = obj(
    ["template"],
    template=POD,
    headService=ANY,
    enableIngress=BOOLEAN,
    ingressOptions=ANY,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=enum("ClusterIP", "NodePort", "LoadBalancer"),
)
WORKERS = obj(
    ["groupName", "minReplicas", "maxReplicas", "template"],
    suspend=BOOLEAN,
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    idleTimeoutSeconds=INTEGER,
    priority=INTEGER,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=POD,
    scaleStrategy=obj(workersToDelete=array(STRING)),
    numOfHosts=INTEGER,
)
RAY_CLUSTER_SPEC = obj(
    ["headGroupSpec", "authOptions"],  # the operator does not require authOptions; our manifests must say it
    upgradeStrategy=obj(type=enum("Recreate", "None")),
    authOptions=obj(["mode"], mode=enum("token", "disabled"), secretName=STRING, enableK8sTokenAuth=BOOLEAN),
    suspend=BOOLEAN,
    managedBy=MANAGED_BY,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=obj(
        ["redisAddress"],
        redisAddress=STRING,
        redisUsername=obj(value=STRING, valueFrom=FROM_SECRET),
        redisPassword=obj(value=STRING, valueFrom=FROM_SECRET),
        externalStorageNamespace=STRING,
    ),
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=obj(enabled=BOOLEAN),
    headGroupSpec=HEAD,
    rayVersion=STRING,
    workerGroupSpecs=array(WORKERS),
)
RAY_JOB_SPEC = obj(
    ["entrypoint"],
    activeDeadlineSeconds=INTEGER,
    backoffLimit=INTEGER,
    rayClusterSpec=RAY_CLUSTER_SPEC,
    submitterPodTemplate=POD,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=obj(backoffLimit=INTEGER),
    managedBy=MANAGED_BY,
    deletionStrategy=ANY,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=enum("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=INTEGER,
    preRunningDeadlineSeconds=INTEGER,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)
RAY_SERVICE_SPEC = obj(
    ["rayClusterConfig"],
    rayClusterDeletionDelaySeconds=INTEGER,
    serviceUnhealthySecondThreshold=INTEGER,
    deploymentUnhealthySecondThreshold=INTEGER,
    serveService=ANY,
    upgradeStrategy=obj(type=enum("NewCluster", "NewClusterWithIncrementalUpgrade", "None"), clusterUpgradeOptions=ANY),
    managedBy=MANAGED_BY,
    serveConfigV2=STRING,
    rayClusterConfig=RAY_CLUSTER_SPEC,
    excludeHeadPodFromServeSvc=BOOLEAN,
)


def resource(version, kind, **fields):
    known = {"apiVersion": enum(version), "kind": enum(kind), "metadata": METADATA}
    return obj(["apiVersion", "kind", "metadata", *fields], **known, **fields)


SCHEMAS = {
    "RayCluster": resource("ray.io/v1", "RayCluster", spec=RAY_CLUSTER_SPEC),
    "RayJob": resource("ray.io/v1", "RayJob", spec=RAY_JOB_SPEC),
    "RayService": resource("ray.io/v1", "RayService", spec=RAY_SERVICE_SPEC),
    "ServiceAccount": resource("v1", "ServiceAccount"),
    "Deployment": resource(
        "apps/v1", "Deployment", spec=obj(["selector", "template"], replicas=INTEGER, selector=ANY, template=POD)
    ),
    "Service": resource("v1", "Service", spec=obj(["ports"], selector=STRINGS, ports=array(ANY), type=STRING)),
    "ConfigMap": resource("v1", "ConfigMap", data=STRINGS),
    "PersistentVolumeClaim": resource(
        "v1",
        "PersistentVolumeClaim",
        spec=obj(
            ["accessModes", "resources"],
            accessModes=array(enum("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")),
            resources=obj(requests=obj(["storage"], storage=STRING)),
            storageClassName=STRING,
        ),
    ),
    "PodMonitor": resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        spec=obj(
            ["selector", "podMetricsEndpoints"],
            selector=obj(matchLabels=STRINGS),
            podMetricsEndpoints=array(obj(["port"], port=STRING, interval=STRING, path=STRING)),
        ),
    ),
}

"""Names of the attributes under which a run is on record."""

PREFIX = "miha:"

# Attributes of a trial. Those of its birth are there when it starts, the others before it ends,
# because a finished trial accepts none.
ROLE = "miha:role"
CYCLE = "miha:cycle"
BRANCH = "miha:branch"
PARENT = "miha:parent"
BIRTH = "miha:epoch"
END = "miha:end"
SEED = "miha:seed"
MUTATION = "miha:mutation"
TRAINED = "miha:trained"
FITNESS = "miha:fitness"
TRAIN_LOSS = "miha:train_loss"
METRICS = "miha:metrics"
CHECKPOINT = "miha:checkpoint"
MEMBER = "miha:member"
ERROR = "miha:error"
ENQUEUED = "miha:guest"  # A trial that the user enqueued.
CROSSOVER = "miha:crossover"  # The numbers of the two trials whose changes it carries.
AVERAGED = "miha:averaged"  # The sibling whose weights it took a half of, and their value.

# Attributes of the study.
PLAN = "miha:plan"
STRETCHES = "miha:stretches"
INITIAL = "miha:initial_params"
SPACE = "miha:space"
RUN_SEED = "miha:seed"
VERSIONS = "miha:versions"
SPENT = "miha:spent"  # For whoever looks at the study; the run itself counts its trials.
CHECKPOINT_DIR = "miha:checkpoint_dir"
FORMAT = "miha:format"
LEASE = "miha:lease"
KEEP = "miha:keep"  # Which checkpoints the last call was told to keep.
RUN = "miha:run"  # A part of the names of the run's files, which tells them from another run's.
LOST = "miha:lost"  # Numbers of trials whose checkpoints are lost, and of all that came of them.

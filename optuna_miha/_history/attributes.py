"""Names of the attributes in which a run is stored."""

PREFIX = "miha:"

# User attributes of a trial. Those that describe its start are set when it starts, the others
# before it finishes, because a finished trial cannot be changed.
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
METRICS = "miha:metrics"  # Of the last epoch.
CHECKPOINT = "miha:checkpoint"
MEMBER = "miha:member"
ERROR = "miha:error"
ENQUEUED = "miha:guest"  # Set for a trial that the user enqueued.
CROSSOVER = "miha:crossover"  # Numbers of the two trials whose changes it combines.
AVERAGED = "miha:averaged"  # The sibling whose weights were averaged in, and the average's value.

CLAIM = "miha:claim"  # The claim of the coordinator that started it.

# System attributes of a trial, with a number for every epoch: optuna-dashboard shows each user
# attribute in one line. Early versions stored them as user attributes.
TRAIN_LOSS = "miha:train_loss"
METRIC_CURVES = "miha:metric_curves"  # With six significant digits.

# User attributes of the study. Stretches, lost trials and `keep` are in the claims instead, unless
# an early version wrote the study.
CLAIM_PREFIX = "miha:claim:"  # Followed by number and nonce: one for each coordinator.
FINISHED = "miha:finished"  # Epochs trained when the run ended and was tidied up.
PLAN = "miha:plan"
STRETCHES = "miha:stretches"
INITIAL = "miha:initial_params"
EPOCH_STEPS = "miha:epoch_steps"  # Steps of an epoch with the initial batch size, if known.
SPACE = "miha:space"
MONITOR = "miha:monitor"  # What is monitored, and its value for the untrained network.
RUN_SEED = "miha:seed"
VERSIONS = "miha:versions"
SPENT = "miha:spent"  # Only for display; the run itself counts the epochs of its trials.
BY_STEP = "miha:by_step"  # Annealed by the step; children continue from the best weights.
CHECKPOINT_DIR = "miha:checkpoint_dir"
FORMAT = "miha:format"
LEASE = "miha:lease"
KEEP = "miha:keep"  # The argument `keep` of the last call.
RUN = "miha:run"  # Part of the names of the run's files, which separates them from other runs'.
HOME = "miha:home"  # Identifies storage and study, by which a copy is recognized.
LATE = "miha:late"  # Numbers of trials of earlier coordinators that were reported as too late.
LOST = "miha:lost"  # Numbers of trials with lost checkpoints, and of all their descendants.

"""The public names for type checkers and editors; `__init__.py` finds them at run time, a test keeps both the same."""

from luthier.cli.climbed import ladder as ladder
from luthier.cli.progress import tune as tune
from luthier.cli.searched import search as search
from luthier.errors import DataError as DataError
from luthier.errors import LuthierError as LuthierError
from luthier.errors import MissingExtra as MissingExtra
from luthier.errors import ModelError as ModelError
from luthier.errors import NotFound as NotFound
from luthier.errors import SpecError as SpecError
from luthier.errors import TrainingError as TrainingError
from luthier.runs import Event as Event
from luthier.runs import Plan as Plan
from luthier.runs import Run as Run
from luthier.runs import Score as Score
from luthier.spec import Data as Data
from luthier.spec import Evaluation as Evaluation
from luthier.spec import Experiment as Experiment
from luthier.spec import Full as Full
from luthier.spec import Judge as Judge
from luthier.spec import Lora as Lora
from luthier.spec import Model as Model
from luthier.spec import PromptTuning as PromptTuning
from luthier.spec import QLora as QLora
from luthier.spec import Search as Search
from luthier.spec import Training as Training
from luthier.spec import integers as integers
from luthier.spec import log_uniform as log_uniform
from luthier.spec import uniform as uniform
from luthier.studio import Studio as Studio
from luthier.studio import compare as compare
from luthier.studio import evaluate as evaluate
from luthier.studio import generate as generate
from luthier.studio import plan as plan
from luthier.studio import prepare as prepare
from luthier.studio import publish as publish

__version__: str

"""The public names: the one list of them, for type checkers and, through lazy_loader, for `sgm/__init__.py`."""

from .conditioning.camera import CAMERA_MOVES as CAMERA_MOVES
from .config import instantiate_from_config as instantiate_from_config
from .convert import convert_weights as convert_weights
from .diffusion.guidance import GUIDERS as GUIDERS
from .diffusion.sampling import SAMPLERS as SAMPLERS
from .engine import choose_device as choose_device
from .engine import load_engine as load_engine
from .errors import UserError as UserError
from .families import FAMILIES as FAMILIES
from .families import FITS as FITS
from .families import ORBITS as ORBITS
from .families import orbit_of as orbit_of
from .fields import Field as Field
from .hub import download_weights as download_weights
from .installed import VersionStatus as VersionStatus
from .installed import best_version as best_version
from .installed import version_status as version_status
from .media.export import EXPORTS as EXPORTS
from .media.export import JOIN as JOIN
from .media.export import stitch as stitch
from .media.image import PictureError as PictureError
from .media.image import describe_fit as describe_fit
from .media.image import fit_picture as fit_picture
from .media.image import open_picture as open_picture
from .media.object import cut_out as cut_out
from .media.object import fetched_first as fetched_first
from .media.object import fetched_share as fetched_share
from .media.object import place_object as place_object
from .media.turntable import draw_orbit as draw_orbit
from .media.turntable import loop_order as loop_order
from .media.turntable import write_turntable as write_turntable
from .media.video import encode_video as encode_video
from .media.video import read_frames as read_frames
from .media.video import read_settings as read_settings
from .media.video import write_frames as write_frames
from .media.video import write_video as write_video
from .pipeline import Clip as Clip
from .pipeline import generate as generate
from .recipe import RECIPE_TEXTS as RECIPE_TEXTS
from .recipe import differences as differences
from .recipe import input_frame as input_frame
from .recipe import is_recipe as is_recipe
from .recipe import read_recipe as read_recipe
from .recipe import request_of as request_of
from .request import VideoRequest as VideoRequest
from .request import all_fields as all_fields
from .request import curves as curves
from .request import prepare_picture as prepare_picture
from .request import takers as takers
from .run import Progress as Progress
from .versions import DEFAULT_VERSION as DEFAULT_VERSION
from .versions import VERSIONS as VERSIONS
from .versions import Version as Version

__all__: list[str]
__version__: str

"""TokenLearner on DeiT-Ti, 16 tokens before block 7: 0.78 GMACs, 17 final tokens.

python train.py --config configs/deit_ti_token_learner.py
"""

from configs import deit_s_token_learner


def get_config():
    """As for DeiT-S, in the smaller size."""
    config = deit_s_token_learner.get_config()
    config.model.name = "deit_ti"
    return config

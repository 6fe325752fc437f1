"""IA-RED²: a vision transformer that drops the patches that it does not need, and shows which ones it did.

"IA-RED²: Interpretability-Aware Redundancy Reduction for Vision Transformers", NeurIPS 2021, arXiv 2106.12620. The
authors published no code. The network follows the tool of theirs that draws heat maps, in the copy of
https://github.com/joon-stack/ltrp, score_net/ia_red_utils (no licence), whose weights load.

The blocks of a DeiT are cut into groups. In front of each an interpreter scores every token by the class token, over
its own heads h,

    s_i = mean_h sigmoid(q_class · k_i / √d),

of the tokens behind a norm without weights; those of at most 1/2 are dropped for good. So the number of tokens differs
from image to image, and sets are nested. Tokens that stay are gathered: the rows of all images lie one behind the other
for norms, linear layers and MLPs, and attention goes image by image. `execution="masked"` computes the same with all
tokens in place, as do training and traced graphs, in which no size may hang on values; it saves nothing.

The head reads the class token alone, so it does not care how many tokens are left. The dense form, which the authors do
not have, gives maps on the whole grid; a patch that was dropped has the value there that it had last.

How interpreters were trained is not published but in outline: by rewards, group after group. `policy_gradient_loss`,
`reward` and `IARED2.learn` are a reconstruction; their defaults are what is left in the tool's constructor, or ours.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checkpoint
from .layers import Attention, Block, DropPath, LayerNorm2d, Linear, heads_of, linear
from .skeletons import vit_names
from .skeletons.backbone import Notes
from .skeletons.isotropic import MLPS, Isotropic
from .skeletons.options import check_shares, check_whole
from .zoo import Rules, Variant, register

EXECUTIONS = ("gathered", "masked")

# --- operator --------------------------------------------------------------------------------------------------------


class Interpreter(nn.Module):
    """The score of every token, see above.

    Args:
        dim: channels C.
        heads: number of heads.

    The linear layer `qk` has 3 C outputs, as the authors' has; nothing reads the last third. `reset_weights` (ours, as
    nothing was published) sets the biases of q and k so that scores begin around sigmoid(1) = 0.73: a network begins
    with all tokens. From biases of 0 it would begin with a random half of them, and learn to take back what it needs.

    `forward(rows (B, N, C), classes (B, 1, C)) -> (B, N)`, in (0, 1): the class token of an image scores its rows.
    """

    def __init__(self, dim: int, heads: int = 6):
        super().__init__()
        self.heads = heads_of("Interpreter", dim, heads)
        self.qk = Linear(dim, 3 * dim)

    def reset_weights(self) -> None:
        assert self.qk.bias is not None
        width = self.qk.in_features
        nn.init.constant_(self.qk.bias[: 2 * width], (width // self.heads) ** -0.25)

    def forward(self, rows: Tensor, classes: Tensor) -> Tensor:
        (dim,) = shape = rows.shape[-1:]
        weight, bias = self.qk.weight, self.qk.bias
        assert bias is not None
        q = linear(F.layer_norm(classes, shape), weight[:dim], bias[:dim]).unflatten(-1, (self.heads, -1))
        k = linear(F.layer_norm(rows, shape), weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(
            -1, (self.heads, -1)
        )
        return torch.sigmoid((q * k).sum(-1) * q.shape[-1] ** -0.5).mean(-1)


class PackedAttention(Attention):
    """Attention to the rows of the own image alone, or to those that are left. Args: as of `Attention`.

    `forward(rows (B, N, C), layout) -> (B, N, C)`. `layout` is None for plain attention, a mask (B, N) of the keys that
    are left, or, of rows (1, M, C) of several images one behind the other, the number of rows of each.
    """

    def forward(self, rows: Tensor, layout: Tensor | Sequence[int] | None = None) -> Tensor:
        q, k, v = self._split(rows)
        if layout is None or isinstance(layout, Tensor):
            mask = None if layout is None else layout[:, None, None]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            parts = zip(*(x.split(list(layout), dim=2) for x in (q, k, v)))
            mixed = torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=2)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class PackedBlock(Block):
    """The pre-norm block on rows. Args: as of `Block`, the mixer a `PackedAttention`.

    `forward(rows, layout)`, as of the mixer.
    """

    places = ()  # which are of maps

    def forward(self, rows: Tensor, layout: Tensor | Sequence[int] | None = None) -> Tensor:
        rows = rows + self.drop_path(self.scale1(self.mixer(self.norm1(rows), layout)))
        return rows + self.drop_path(self.scale2(self.mlp(self.norm2(rows))))


# --- tokens on their way ---------------------------------------------------------------------------------------------


class MaskedRows:
    """All tokens in place; those that were dropped stay as they are, and nobody looks at them.

    Args:
        rows: (B, N, C), the class token first.
    """

    def __init__(self, rows: Tensor):
        self.rows = rows
        self.kept: Tensor | None = None

    def classes(self) -> Tensor:
        """The class tokens, (B, 1, C)."""
        return self.rows[:, :1]

    def scores(self, interpreter: Interpreter) -> Tensor:
        """The score of every token, (B, N); 0 of those that were dropped."""
        scores = interpreter(self.rows, self.classes())
        return scores if self.kept is None else scores * self.kept

    def drop(self, kept: Tensor) -> None:
        """Leave those of a mask (B, N) alone."""
        self.kept = kept

    def run(self, run: Any, block: nn.Module) -> None:
        new = run(block, self.rows, self.kept)
        self.rows = new if self.kept is None else torch.where(self.kept[..., None], new, self.rows)

    def grid(self) -> Tensor:
        """All tokens, (B, N, C), those that were dropped as they were last."""
        return self.rows


class GatheredRows(MaskedRows):
    """The tokens that are left, of all images one behind the other. As long as every image has as many, they stay a
    batch.

    Args: as of `MaskedRows`.
    """

    def __init__(self, rows: Tensor):
        super().__init__(rows)
        self.all = rows  # as they were when the last ones were dropped
        self.places: Tensor | None = None  # (M,), in the rows of `all`
        self.lengths = [rows.shape[1]] * rows.shape[0]

    def _even(self) -> bool:
        return len(set(self.lengths)) == 1

    def classes(self) -> Tensor:
        if self._even():
            return self.rows[:, :1]
        counts = torch.tensor([0, *self.lengths[:-1]], device=self.rows.device).cumsum(0)
        return self.rows[0, counts].unsqueeze(1)

    def scores(self, interpreter: Interpreter) -> Tensor:
        classes = self.classes()
        if not self._even():
            counts = torch.tensor(self.lengths, device=self.rows.device)
            classes = classes.transpose(0, 1).repeat_interleave(counts, dim=1, output_size=self.rows.shape[1])
        scores = interpreter(self.rows, classes)
        if self.places is None:
            return scores
        table = scores.new_zeros(self.all.shape[:2])
        return table.flatten().scatter(0, self.places, scores.flatten()).view_as(table)

    def drop(self, kept: Tensor) -> None:
        if sum(self.lengths) == (lengths := kept.sum(1)).sum():
            return  # nothing to drop: what is kept is among what is left
        self.all = self.grid()
        self.places = kept.flatten().nonzero().squeeze(1)
        self.lengths = lengths.tolist()
        rows = self.all.flatten(0, 1)[self.places]
        self.rows = rows.view(len(kept), -1, rows.shape[-1]) if self._even() else rows.unsqueeze(0)

    def run(self, run: Any, block: nn.Module) -> None:
        self.rows = run(block, self.rows, None if self._even() else self.lengths)

    def grid(self) -> Tensor:
        if self.places is None:
            return self.rows
        return self.all.flatten(0, 1).index_copy(0, self.places, self.rows.flatten(0, 1)).view_as(self.all)


# --- learning by rewards ---------------------------------------------------------------------------------------------


def check_bound(bound: float) -> None:
    """Raises ValueError for a bound that `sample` cannot take: with 0.5, scores would mean nothing."""
    if not 0.5 < bound <= 1:
        raise ValueError(f"bound={bound} must be above 0.5 and at most 1")


def sample(scores: Tensor, before: Tensor, bound: float = 1.0, tokens: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens drawn by their scores, and the logarithm of the probability of that draw.

    Args:
        scores: (B, N), in [0, 1], of the class token first.
        before: bool (B, N), the tokens that are left so far.
        bound: b, for draws by b s + (1 - b)(1 - s) in place of s: with less than 1, nothing is ever certain.
        tokens: number of the first tokens that always stay: of the class token, and of registers.

    Returns:
        bool (B, N), those that stay, and (B,), which has gradients.
    """
    check_bound(bound)
    chance = scores * bound + (1 - scores) * (1 - bound)
    kept = torch.bernoulli(chance.detach()).bool() & before
    kept[:, :tokens] = True
    drawn = before.clone()
    drawn[:, :tokens] = False
    eps = torch.finfo(chance.dtype).eps
    chance = chance.clamp(eps, 1 - eps)
    return kept, (torch.where(kept, chance, 1 - chance).log() * drawn).sum(1)


def check_reward(*penalties: float, power: float) -> None:
    """Raises ValueError for numbers with which fewer tokens, or right predictions, would be no gain."""
    if not 0 < power < math.inf:
        raise ValueError(f"power={power} must be a number above 0")
    if wrong := [penalty for penalty in penalties if not 0 <= penalty < math.inf]:
        raise ValueError(f"penalties={penalties} must be numbers of at least 0, got {wrong[0]}")


def reward(right: Tensor, share: Tensor, penalty: float, power: float = 2.0) -> Tensor:
    """1 - share^power for an image that is classified right, else -penalty: (B,).

    Args:
        right: bool (B,), whether the prediction is right.
        share: (B,), share of the tokens that are left, the class token among them.
        penalty: what a wrong prediction costs.
        power: exponent of the share.
    """
    return torch.where(right, 1 - share**power, torch.full_like(share, -penalty))


def policy_gradient_loss(log_probability: Tensor, gained: Tensor, baseline: Tensor) -> Tensor:
    """The loss whose gradient is that of REINFORCE: -mean((gained - baseline) · log_probability).

    Args:
        log_probability: (B,), of the tokens that were drawn (see `sample`).
        gained: (B,), their rewards.
        baseline: (B,), the rewards of the tokens that inference would keep (self-critical).
    """
    return -((gained - baseline).detach() * log_probability).mean()


# --- network ---------------------------------------------------------------------------------------------------------


def on_grid(values: Tensor, size: Sequence[int]) -> Tensor:
    """Those of the patches, of values (B, T + H · W) of all tokens, as (B, H, W)."""
    return values[:, values.shape[1] - size[0] * size[1] :].unflatten(1, size)


class Interpretation(NamedTuple):
    """What a network made of a batch.

    Attributes:
        logits: (B, classes); None of the dense form.
        cost: (B,), relative to the network that keeps all tokens, as the tool counts it: linear in tokens, the square
            in attention left out.
        scores: one (B, T + H · W) for each group, the T class and register tokens first; 0 of tokens that were dropped
            before.
        kept: bool, alike: which tokens the blocks of the group see.
        size: H and W.
    """

    logits: Tensor | None
    cost: Tensor
    scores: list[Tensor]
    kept: list[Tensor]
    size: tuple[int, int]

    def heat_map(self, group: int = -1, least: float = 0.48) -> Tensor:
        """The scores of a group as a map (B, H, W), those below `least` (as the tool has it) raised to it."""
        return on_grid(self.scores[group], self.size).clamp(least, 1)

    def kept_maps(self) -> list[Tensor]:
        """Which patches stay, a bool map (B, H, W) for each group."""
        return [on_grid(kept, self.size) for kept in self.kept]


class Trial(NamedTuple):
    """Tokens that were drawn in training: what `feedback` needs to reward them."""

    log_probability: Tensor
    share: Tensor
    greedy_share: Tensor
    greedy_logits: Tensor


class Grid(nn.Module):
    """All tokens of an image, (B, T + H · W, C), as the map (B, C, H, W) of its patches."""

    def forward(self, rows: Tensor, size: Sequence[int]) -> Tensor:
        return on_grid(rows, size).permute(0, 3, 1, 2)


class IARED2(Isotropic):
    """IA-RED²: a classifier, or a backbone that gives maps.

    Its interpreters take no gradients until `learn` says so. In training, tokens are dropped as in inference, but that
    the interpreter that learns draws its own.

    Args:
        dim, class_position, **common: as of `Isotropic`. Registers always stay. `frozen_stages` counts blocks.
        groups: number of blocks of each group.
        heads: number of attention heads.
        interpreter_heads: number of heads of the interpreters.
        threshold: score above which a token stays.
        last_group: last group whose interpreter drops tokens, from 0; later ones take over what is left, and score it.
            -1 for all.
        execution: "gathered", or "masked", see above.
        qkv_bias: whether queries, keys and values have a bias.
        penalties: reward that a wrong prediction costs, for each group whose interpreter learns.
        power: exponent of the share of tokens in the reward of a right prediction.
        bound: as of `sample`.
        learns: what `learn` is called with at the end of construction, such as ("interpreter", 0), or None.
    """

    level_modules = "outputs"
    dense_names = (*Isotropic.dense_names, r"^interpreters\.")  # the weights of a plain network have none
    unused = ("plugins",)
    map_kind = "group"

    def __init__(
        self,
        dim: int = 192,
        groups: Sequence[int] = (4, 4, 4),
        heads: int = 3,
        interpreter_heads: int = 6,
        threshold: float = 0.5,
        last_group: int = -1,
        execution: str = "gathered",
        qkv_bias: bool = True,
        class_position: bool = True,
        penalties: Sequence[float] = (3.0, 5.0, 8.0),
        power: float = 2.0,
        bound: float = 0.8,
        learns: tuple[str, int] | None = None,
        **common,
    ):
        if execution not in EXECUTIONS:
            raise ValueError(f"IARED2: execution={execution!r} must be one of {EXECUTIONS}")
        if not 0 <= threshold < 1:
            raise ValueError(f"IARED2: threshold={threshold} must be at least 0 and below 1")
        if not -1 <= last_group < len(groups):
            raise ValueError(f"IARED2: last_group={last_group} must be -1, or from 0 to {len(groups) - 1}")
        check_reward(*penalties, power=power)
        if len(penalties) < len(groups):
            raise ValueError(
                f"IARED2: penalties={tuple(penalties)} must have one entry for each of {len(groups)} groups"
            )
        self.groups, self.heads, self.qkv_bias = tuple(groups), heads, qkv_bias
        self.threshold, self.execution = threshold, execution
        self.last_group = last_group if last_group >= 0 else len(groups) - 1
        self.penalties, self.power, self.bound = tuple(penalties), power, bound
        self.starts = {sum(self.groups[:g]): g for g in range(len(self.groups))}  # block -> group that begins there
        self.draws: int | None = None  # group whose interpreter learns
        self.trial: Trial | None = None
        super().__init__(dim, sum(groups), "Attention", class_token=0, class_position=class_position, **common)
        self.tokens = 1 + self.registers
        self.outputs = nn.ModuleList(Grid() for _ in self.blocks)
        reached = sum(start < len(self.blocks) for start in self.starts)
        self.interpreters = nn.ModuleList(Interpreter(dim, interpreter_heads) for _ in range(reached))
        self.interpreters.apply(self.initialize).requires_grad_(False)
        self.checkpoint_rules = [rule_of_twins(self.groups), *type(self).checkpoint_rules]
        self.register_load_state_dict_pre_hook(untwin)
        if learns is not None:
            self.learn(*learns)

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        groups = given.get("groups", (1,))
        if not isinstance(groups, Sequence) or not groups:
            raise ValueError(f"groups must have the number of blocks of each group, got {groups!r:.60}")
        check_whole("groups", groups)
        for name in ("threshold", "bound"):
            check_shares(name, given.get(name, 1.0))
        check_bound(given.get("bound", 1.0))

    @property
    def leaves_out(self) -> str:
        return "tokens"

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        mlp, norm = MLPS[self.mlp](dim, self.mlp_ratio[index]), partial(LayerNorm2d, eps=self.eps)
        mixer = PackedAttention(dim, self.heads, self.qkv_bias)
        return PackedBlock(dim, mixer, mlp, drop_path, self.layer_scale[index], norm=norm)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _states(self, image: Tensor, notes: Notes, draws: int | None = None) -> Iterator[MaskedRows]:
        """The tokens behind every block. Notes "scores" and "kept", lists by group, "size", and "log_probability" where
        the interpreter of the group `draws` draws."""
        x = self.embed(image)
        del image
        tokens = self.joining(x.shape[0])
        assert tokens is not None
        notes["size"], notes["scores"], notes["kept"] = (x.shape[-2], x.shape[-1]), [], []
        rows = torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1)
        # no size of a traced graph, and none without memory, hangs on values; masks let gradients through a batch
        fixed = self.training or torch.compiler.is_compiling() or rows.device.type == "meta"
        state = (MaskedRows if fixed or self.execution == "masked" else GatheredRows)(rows)
        kept = rows.new_ones(rows.shape[:2], dtype=torch.bool)
        for i, block in enumerate(self.blocks):
            if (group := self.starts.get(i)) is not None:
                scores = state.scores(self.interpreters[group])  # type: ignore[arg-type]
                if group <= self.last_group:
                    if group == draws:
                        kept, notes["log_probability"] = sample(scores, kept, self.bound, self.tokens)
                    else:
                        learned = torch.arange(kept.shape[1], device=kept.device) < self.tokens
                        kept = (scores > self.threshold) & kept | learned
                    state.drop(kept)
                notes["scores"].append(scores)
                notes["kept"].append(kept)
            state.run(self.blocks.run, block)
            yield state

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        for state, output in zip(self._states(image, notes), self.outputs):
            notes["rest"] = state.classes()
            yield output(state.grid(), notes["size"])

    def forward_features(self, image: Tensor, notes: Notes | None = None) -> Tensor:
        return self._features(image, {} if notes is None else notes)

    def _features(self, image: Tensor, notes: Notes, draws: int | None = None) -> Tensor:
        for state in self._states(self.check(image), notes, draws):  # noqa: B007
            pass
        notes["rest"] = state.classes()
        return self.head_input(notes["rest"], notes)

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """The class token behind the last norm and the projection, (B, 1, C)."""
        return self.normed(self.depth - 1, notes["rest"], notes)

    @property
    def answer_layers(self) -> list[str]:
        """As of `Backbone`; of a classifier the patches, before tokens are dropped."""
        return super().answer_layers if self.head is None else ["stem" if self.position is None else "position"]

    def interpret(self, image: Tensor) -> Interpretation:
        """What the network keeps of images, why, and what it makes of them.

        Args:
            image: (B, 3, H, W).
        """
        notes: Notes = {}
        features = self._features(image, notes)
        logits = None if self.head is None else self.forward_head(features)
        return Interpretation(logits, self.cost(notes["kept"]), notes["scores"], notes["kept"], notes["size"])

    def cost(self, kept: Sequence[Tensor]) -> Tensor:
        """The relative cost (B,) of tokens (B, N) that stay in the groups (see `Interpretation`)."""
        shares = torch.stack([part.float().mean(1) for part in kept])
        blocks = torch.tensor(self.groups[: len(kept)], device=shares.device, dtype=shares.dtype)
        return 1 - ((1 - shares) * blocks[:, None]).sum(0) / blocks.sum()

    def attention_maps(self, image: Tensor, place: tuple[int, int]) -> Tensor:
        """The scores of every group, whatever the place: (B, groups, H, W)."""
        found = self.interpret(image)
        return torch.stack([on_grid(scores, found.size) for scores in found.scores], dim=1)

    # --- training ----------------------------------------------------------------------------------------------------

    def learn(self, part: str | None = None, group: int = -1) -> None:
        """Say what learns from now on; the rest takes no gradients.

        Args:
            part: "interpreter", that of the group, by rewards; "blocks", those of the group, the last norm and the
                head, on the tokens that are left; None for all but the interpreters.
            group: number of the group, from 0; tokens are dropped up to there. -1 for the last.
        """
        if part not in ("interpreter", "blocks", None):
            raise ValueError(f"part={part!r} must be 'interpreter', 'blocks' or None")
        if not -1 <= group < len(self.interpreters):
            raise ValueError(f"group={group} must be from 0 to {len(self.interpreters) - 1}, or -1 for the last")
        group %= len(self.interpreters)
        if part == "interpreter" and self.head is None:
            raise ValueError(
                "part='interpreter' learns from right and wrong predictions, and the dense form makes none"
            )
        self.requires_grad_(part is None)
        self.interpreters.requires_grad_(False)
        self.last_group, self.draws, self.trial = group, None, None
        if part == "interpreter":
            self.draws = group
            self.interpreters[group].requires_grad_(True)
        elif part == "blocks":
            first = sum(self.groups[:group])
            of_group = self.blocks[first : first + self.groups[group]]
            for module in (*of_group, self.norm, self.projection, self.head):
                if module is not None:
                    module.requires_grad_(True)
        self.train(self.training)  # what is frozen stays so

    def train(self, mode: bool = True) -> "IARED2":
        """As of `Backbone`. Where an interpreter learns, no branches are dropped: two passes are compared, of which
        only the tokens differ."""
        super().train(mode)
        if self.draws is not None:
            for module in self.modules():
                if isinstance(module, DropPath):
                    module.eval()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the last draw, which belongs to a graph: for copies and files."""
        return {**self.__dict__, "trial": None}

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not (self.training and self.draws is not None):
            return super().forward(image)
        notes: Notes = {}
        with torch.no_grad():
            greedy = self.forward_head(self._features(image, notes))
            greedy_share = notes["kept"][self.draws].float().mean(1)
        logits = self.forward_head(self._features(image, notes := {}, self.draws))
        share = notes["kept"][self.draws].float().mean(1)
        self.trial = Trial(notes["log_probability"], share, greedy_share, greedy)
        return logits

    def feedback(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What an interpreter that learns makes of its last draw: "loss", whose gradient is that of REINFORCE with the
        reward of inference as baseline, and the means of "reward" and "kept", the share of tokens. Empty where none
        learns.

        Args:
            logits: (B, classes), what `forward` gave.
            labels: int64 (B,).
        """
        if self.trial is None:
            return {}
        trial, self.trial = self.trial, None
        assert self.draws is not None
        gain = partial(reward, penalty=self.penalties[self.draws], power=self.power)
        gained = gain(logits.detach().argmax(1) == labels, trial.share)
        baseline = gain(trial.greedy_logits.argmax(1) == labels, trial.greedy_share)
        loss = policy_gradient_loss(trial.log_probability, gained, baseline)
        return dict(loss=loss, reward=gained.mean(), kept=trial.share.mean())

    def extra_repr(self) -> str:
        names = ("groups", "threshold", "last_group", "execution", "penalties", "power", "bound")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    # --- names -------------------------------------------------------------------------------------------------------

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        blocks = [rf"^blocks\.{i}\." for i in range(len(self.blocks), self.depth)]
        absent = [rf"^interpreters\.{g}\." for g in range(len(self.interpreters), len(self.groups))]
        return [*super().checkpoint_optional, *blocks, *absent]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        found = super().group_matcher(coarse)
        return found | dict(blocks=[*found["blocks"], (r"^interpreters", (99999,))])


_WIDTHS: dict[str, dict] = {
    "tiny": dict(dim=192, heads=3),
    "small": dict(dim=384, heads=6),
    "base": dict(dim=768, heads=12),
}

# Parameters were counted; figures of each model are not at hand. Over all, images cost up to 1.4 times less time at
# less than 0.7 points of accuracy.
VARIANTS = {
    "ia_red2_deit_tiny": Variant(_WIDTHS["tiny"], 6_050_920),
    "ia_red2_deit_small": Variant(_WIDTHS["small"], 23_381_224),
    "ia_red2_deit_base": Variant(_WIDTHS["base"], 91_882_984),
}

# --- checkpoints of the tool -----------------------------------------------------------------------------------------

# A file of the tool has the weights of blocks twice: groups.0.block_list.0 are those of blocks.0. Either is enough.
TWINS = "twins."
RULES: Rules = [(r"^groups\.(\d+)\.agent\.", r"interpreters.\1."), *vit_names.RULES]


def rule_of_twins(groups: Sequence[int]) -> tuple:
    """The rule for the second names of blocks, which are kept apart until it is known whether there are first ones."""
    return r"^groups\.(\d+)\.block_list\.(\d+)\.(.+)$", partial(_twin, groups=tuple(groups))


def _twin(match: re.Match, groups: Sequence[int]) -> str:
    block = sum(groups[: int(match[1])]) + int(match[2])
    return f"{TWINS}{checkpoint.rename(f'blocks.{block}.{match[3]}', RULES)}"


def untwin(network: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Give second names of a state dict the first ones where it has none of these."""
    for name in [name for name in state if name.startswith(prefix + TWINS)]:
        state.setdefault(prefix + name.removeprefix(prefix + TWINS), state.pop(name))


register(IARED2, VARIANTS, RULES)

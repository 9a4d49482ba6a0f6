"""A LazyConfig: Mask R-CNN of the model zoo, smaller, with one norm in every part."""

from detectron2 import model_zoo

_zoo = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, train, dataloader = _zoo.model, _zoo.train, _zoo.dataloader
optimizer, lr_multiplier = _zoo.optimizer, _zoo.lr_multiplier

NORM = "EvoNormS0"
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = NORM
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages["stride_in_1x1"]
model.backbone.bottom_up.freeze_at = 0
model.backbone.norm, model.backbone.out_channels = NORM, 32
model.proposal_generator.head.in_channels = 32
_heads = model.roi_heads
_heads.num_classes = 4
_heads.box_head.input_shape.channels = 32
_heads.box_head.update(conv_dims=[32], conv_norm=NORM, fc_dims=[64])
_heads.box_predictor.input_shape.channels = 64
_heads.mask_head.input_shape.channels = 32
_heads.mask_head.conv_dims, _heads.mask_head.conv_norm = [32, 32], NORM
train.init_checkpoint, train.checkpointer.period = "", 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
for _mapper in (dataloader.train.mapper, dataloader.test.mapper):
    _mapper.augmentations[0].short_edge_length = [64, 64]
train.unused = {"_target_": lambda: None}  # as in many configs: it cannot be pickled

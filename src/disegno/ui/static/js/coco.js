// COCO's classes and the colours of their boxes, as the annotator `boxes` paints them.

export const BOXES = [
  ["person", "#ff0000"], ["bicycle", "#00ff00"], ["car", "#0000ff"], ["motorcycle", "#ffff00"], ["airplane", "#ff00ff"], ["bus", "#00ffff"],
  ["train", "#808000"], ["truck", "#800080"], ["boat", "#008080"], ["traffic light", "#808080"], ["fire hydrant", "#400000"],
  ["stop sign", "#004000"], ["parking meter", "#000040"], ["bench", "#404000"], ["bird", "#400040"], ["cat", "#004040"], ["dog", "#c0c0c0"],
  ["horse", "#202020"], ["sheep", "#606060"], ["cow", "#a0a0a0"], ["elephant", "#e0e0e0"], ["bear", "#200000"], ["zebra", "#002000"],
  ["giraffe", "#000020"], ["backpack", "#202000"], ["umbrella", "#200020"], ["handbag", "#002020"], ["tie", "#600000"], ["suitcase", "#006000"],
  ["frisbee", "#000060"], ["skis", "#606000"], ["snowboard", "#600060"], ["sports ball", "#006060"], ["kite", "#a00000"],
  ["baseball bat", "#00a000"], ["baseball glove", "#0000a0"], ["skateboard", "#a0a000"], ["surfboard", "#a000a0"], ["tennis racket", "#00a0a0"],
  ["bottle", "#e00000"], ["wine glass", "#00e000"], ["cup", "#0000e0"], ["fork", "#e0e000"], ["knife", "#e000e0"], ["spoon", "#00e0e0"],
  ["bowl", "#404040"], ["banana", "#804040"], ["apple", "#408040"], ["sandwich", "#404080"], ["orange", "#808040"], ["broccoli", "#804080"],
  ["carrot", "#408080"], ["hot dog", "#c04040"], ["pizza", "#40c040"], ["donut", "#4040c0"], ["cake", "#c0c040"], ["chair", "#c040c0"],
  ["couch", "#40c0c0"], ["potted plant", "#602020"], ["bed", "#206020"], ["dining table", "#202060"], ["toilet", "#606020"], ["tv", "#602060"],
  ["laptop", "#206060"], ["mouse", "#a02020"], ["remote", "#20a020"], ["keyboard", "#2020a0"], ["cell phone", "#a0a020"], ["microwave", "#a020a0"],
  ["oven", "#20a0a0"], ["toaster", "#e02020"], ["sink", "#20e020"], ["refrigerator", "#2020e0"], ["book", "#e0e020"], ["clock", "#e020e0"],
  ["vase", "#20e0e0"], ["scissors", "#406060"], ["teddy bear", "#604060"], ["hair drier", "#606040"], ["toothbrush", "#a06060"],
];

// Shows the report of a GtR Sampler in its node after a run, in both renderers of nodes.
import { app } from "../../scripts/app.js";

const NAME = "gtr_report";
const LINE = 14, MOST = 16;
const STYLE = "font: 11px/14px monospace; white-space: pre-wrap; overflow: auto; user-select: text; padding: 4px;"
    + " box-sizing: border-box; color: var(--input-text); background: var(--comfy-input-bg); border-radius: 4px;";

function show(node, text) {
    let widget = node.widgets?.find((candidate) => candidate.name === NAME);
    if (!widget) {
        const element = document.createElement("div");
        element.style.cssText = STYLE;
        // Every line of a report takes about two in a node's width.
        const height = () => 8 + LINE * Math.min(MOST, 2 * element.textContent.split("\n").length);
        // A type of its own: for those that it knows, such as "text", Nodes 2.0 draws an input instead of the element.
        widget = node.addDOMWidget(NAME, NAME, element, { serialize: false, getMinHeight: height, getValue: () => "" });
        widget.serialize = false;
    }
    widget.element.textContent = text;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

app.registerExtension({
    name: "gtr-mar.report",
    nodeCreated(node) {
        if (node.comfyClass !== "GtR_Sampler") return;
        const before = node.onExecuted;
        node.onExecuted = function (output) {
            before?.call(this, output);
            if (output?.text) show(this, [].concat(output.text).join("\n"));
        };
    },
});

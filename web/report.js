// Shows the report of a GtR Sampler in its node after a run, in both renderers of nodes, and keeps it while the page is
// open in its tab: other workflows may be shown in between, and the page may be loaded anew.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TYPE = "GtR_Sampler", NAME = "gtr_report", ERROR = "gtr_mar.GtRError";
const LINE = 14, MOST = 16, ERROR_SECONDS = 20;
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

/** Where a node's report is kept: by the workflow that the node belongs to. */
function place(node) {
    return `${NAME} ${(app.rootGraph ?? app.graph).id} ${node.graph.id} ${node.id}`;
}

function keep(node, text) {
    try {
        sessionStorage.setItem(place(node), text);
    } catch {
        // The storage is full or forbidden: the report is then lost with the node.
    }
}

function restore(node) {
    const text = sessionStorage.getItem(place(node));
    if (text) show(node, text);
}

app.registerExtension({
    name: "gtr-mar.report",
    setup() {
        // The page's own card says only that a node failed.
        api.addEventListener("execution_error", ({ detail }) => {
            if (detail.exception_type !== ERROR) return;
            const title = app.rootGraph?.getNodeById(detail.node_id)?.title ?? detail.node_type;
            const line = detail.exception_message.trim();
            app.extensionManager.toast.add({
                severity: "error", summary: title, detail: line, life: 1000 * ERROR_SECONDS,
            });
        });
    },
    nodeCreated(node) {
        if (node.comfyClass !== TYPE) return;
        const before = node.onExecuted;
        node.onExecuted = function (output) {
            before?.call(this, output);
            if (!output?.text) return;
            const text = [].concat(output.text).join("\n");
            show(this, text);
            keep(this, text);
        };
    },
    loadedGraphNode(node) {
        if (node.comfyClass === TYPE) restore(node);
    },
});

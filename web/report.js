// Shows the report of a GtR Sampler in its node after a run, in both renderers of nodes, and keeps it while the page is
// open in its tab: other workflows may be shown in between, and the page may be loaded anew. An error of the pack is
// shown in a toast beside the page's own card, which says only that a node failed.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TYPE = "GtR_Sampler", NAME = "gtr_report", ERROR = "gtr_mar.GtRError";
const LINE = 14, LETTER = 6.7, PADDING = 4, MARGIN = 10, MOST_LINES = 32, ERROR_SECONDS = 20;
const STYLE = "font: 11px/14px monospace; white-space: pre-wrap; overflow: auto; user-select: text;"
    + ` padding: ${PADDING}px;`
    + " box-sizing: border-box; color: var(--input-text); background: var(--comfy-input-bg); border-radius: 4px;";
const TOAST = "gtr-error", CARD = "[data-testid='error-overlay']", GAP = 10;
const LEAVING = ".p-toast-message-leave-active";

/** How many lines a text takes, wrapped at spaces. */
function wrapped(text, columns) {
    let lines = 0;
    for (const line of text.split("\n")) {
        let used = Infinity;
        for (const word of line.split(" ")) {
            used += 1 + word.length;
            if (used <= columns) continue;
            lines += Math.max(1, Math.ceil(word.length / columns));
            used = word.length % columns || Math.min(word.length, columns);
        }
    }
    return lines;
}

function show(node, text) {
    let widget = node.widgets?.find((candidate) => candidate.name === NAME);
    if (!widget) {
        const element = document.createElement("div");
        element.style.cssText = STYLE;
        const height = () => {
            const columns = Math.floor((node.size[0] - 2 * (MARGIN + PADDING)) / LETTER);
            return 2 * (MARGIN + PADDING) + LINE * Math.min(MOST_LINES, wrapped(element.textContent, columns));
        };
        // A type of its own: for those that it knows, such as "text", Nodes 2.0 draws an input instead of the element.
        widget = node.addDOMWidget(NAME, NAME, element, { serialize: false, getMinHeight: height, getValue: () => "" });
        widget.serialize = false;
    }
    widget.element.textContent = text;
    const [width, height] = node.computeSize();
    node.gtrGrown = (node.gtrGrown ?? 0) + Math.max(0, height - node.size[1]);
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}

/** Where a node's report is kept. Every opened copy of a template has the same ids. */
function place(node) {
    return `gtr-mar.report ${(app.rootGraph ?? app.graph).id} ${node.graph.id} ${node.id}`;
}

/** The values of a node and of all that lead to it, as they are shown: of all copies of a template, one has these. */
function settings(node, found = new Map()) {
    if (!node || found.has(node.id)) return found;
    const widgets = (node.widgets ?? []).filter((widget) => widget.serialize !== false);
    found.set(node.id, [node.type, ...widgets.map((widget) => widget.value)]);
    for (const slot of node.inputs?.keys() ?? []) settings(node.getInputNode(slot), found);
    return found;
}

const fingerprint = (node) => JSON.stringify([...settings(node)]);

function keep(node, text) {
    try {
        sessionStorage.setItem(place(node), JSON.stringify([fingerprint(node), text]));
    } catch {
        // The storage is full or forbidden: the report is then lost with the node.
    }
}

function restore(node) {
    const [known, text] = JSON.parse(sessionStorage.getItem(place(node)) ?? "[]");
    if (text && known === fingerprint(node)) show(node, text);
}

/** Move the toast to the left of the page's card once both are there, as far as the page goes. */
function moveAside(tries = 30) {
    const card = document.querySelector(CARD), element = document.querySelector(`.${TOAST}:not(${LEAVING})`);
    if (card && element) {
        const { left, right } = element.getBoundingClientRect();
        const way = right + GAP - card.getBoundingClientRect().left;
        Object.assign(element.style, { position: "relative", right: `${Math.max(0, Math.min(way, left - GAP))}px` });
    } else if (tries > 0) setTimeout(() => moveAside(tries - 1), 100);
}

let shown = null;

/** Show an error in place of the one before; null takes that away. */
function complain(error) {
    const toasts = app.extensionManager.toast;
    if (toasts.dismiss) { // newer front ends know toasts by name
        if (error) toasts.error(error.title, { id: TOAST, description: error.line, duration: 1000 * ERROR_SECONDS });
        else toasts.dismiss(TOAST);
        return;
    }
    if (shown) toasts.remove(shown);
    shown = error && {
        severity: "error", summary: error.title, detail: error.line, life: 1000 * ERROR_SECONDS, styleClass: TOAST,
    };
    if (!shown) return;
    toasts.add(shown);
    setTimeout(moveAside, 100);
}

app.registerExtension({
    name: "gtr-mar.report",
    setup() {
        api.addEventListener("execution_start", () => complain(null));
        api.addEventListener("execution_error", ({ detail }) => {
            if (detail.exception_type !== ERROR) return;
            const title = app.rootGraph?.getNodeById(detail.node_id)?.title ?? detail.node_type;
            complain({ title, line: detail.exception_message.trim() });
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
        // A workflow holds the node without its report, and the node as high as it was without one.
        const stored = node.onSerialize;
        node.onSerialize = function (data) {
            stored?.call(this, data);
            if (this.gtrGrown) data.size = [data.size[0], data.size[1] - this.gtrGrown];
        };
    },
    loadedGraphNode(node) {
        if (node.comfyClass === TYPE) restore(node);
    },
});

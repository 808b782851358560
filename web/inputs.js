// Shows of a node's widgets those that count: the settings of the chosen preset, the classes of the connected model.
// Values stay as they are, but for a class that another model does not have; the server never needs this file.
import { app } from "../../scripts/app.js";

const DEMO_FILE = "demo (built-in)", DEMO_CLASS = "demo ", DEFAULT = "default";
// Which widgets count with the value of the first widget; those that are not named always do.
const COUNTED = {
    GtR_Scheduler: (preset) => preset === "custom" ? null : ["preset"],
    GtR_BaselineScheduler: (method) => ["method", ...(method === "origin" ? [] : ["ar_steps", "diffusion_steps"]),
        ...({ disa: ["disa_end", "disa_profile", "disa_clip"], subsample: ["subsample_phases"],
            halton: ["halton_shift"] }[method] ?? [])],
    GtR_Redraw: (redraw) => redraw === "denoise" ? null : ["redraw"],
};

/** Fold a widget away, or grey it, in both renderers. */
function set(widget, hidden, disabled) {
    widget.hidden = widget.options.hidden = hidden;
    widget.disabled = widget.options.disabled = disabled;
}

/** The default of a widget as the server declares it. */
function declared(node, name) {
    const input = node.constructor.nodeData?.input ?? {};
    return (input.required?.[name] ?? input.optional?.[name])?.[1]?.default;
}

/** Fold what the choice ignores; what was changed without effect stays, greyed. A wire says that a widget matters. */
function showCounted(node) {
    const [choice, ...settings] = node.widgets;
    const counted = COUNTED[node.comfyClass](choice.value);
    const wired = (name) => node.inputs?.some(
        (input, slot) => input.widget?.name === name && node.isInputConnected(slot));
    for (const widget of settings) {
        const unused = counted !== null && !counted.includes(widget.name);
        const changed = wired(widget.name) || widget.value !== declared(node, widget.name);
        set(widget, unused && !changed, unused && !wired(widget.name));
        widget.options.advanced = false; // what counts is shown, without a button for more
    }
    node.graph?.setDirtyCanvas(true, true);
}

/** The same, and the node gets as much higher or lower as its widgets do. */
function refit(node) {
    const free = node.size[1] - node.computeSize()[1];
    showCounted(node);
    node.setSize([node.size[0], node.computeSize()[1] + Math.max(0, free)]);
}

/** The same for values and a size that were stored together: nothing grows by being loaded or pasted. */
function showStored(node) {
    showCounted(node);
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

/** The node that feeds an input, through reroutes and out of subgraphs' inputs. */
function source(node, slot) {
    const from = node.getInputNode?.(slot);
    return from?.isVirtualNode && from.inputs?.length === 1 ? source(from, 0) : from;
}

/** Offer the classes of the connected model. */
function followModel(node) {
    const menu = node.widgets.find((widget) => widget.name === "class_name");
    const list = node.widgets.find((widget) => widget.name === "class_list");
    const from = source(node, node.findInputSlot("model"));
    const file = from?.comfyClass === "GtR_LoadMAR" ? from.widgets.find((w) => w.name === "model_name")?.value : null;
    const all = menu.gtrClasses ??= [...menu.options.values];
    const demo = file === DEMO_FILE;
    menu.options.values = typeof file !== "string" ? all
        : all.filter((name) => name === DEFAULT || name.startsWith(DEMO_CLASS) === demo);
    set(menu, false, Boolean(list?.value?.trim()));
}

/** Do something whenever one of a node's widgets has changed. */
function onChange(node, action) {
    for (const widget of node.widgets ?? []) {
        const before = widget.callback;
        widget.callback = function (...values) {
            const result = before?.apply(this, values);
            action(widget);
            return result;
        };
    }
}

/** All nodes of a class, in subgraphs too. */
function every(graph, type, found = []) {
    for (const node of graph?.nodes ?? []) {
        if (node.comfyClass === type) found.push(node);
        if (node.subgraph) every(node.subgraph, type, found);
    }
    return found;
}

function follow() {
    for (const node of every(app.rootGraph ?? app.graph, "GtR_ClassCondition")) followModel(node);
}

/** A class of another model cannot be drawn: the default of the new one takes its place. */
function switchModel() {
    follow();
    for (const node of every(app.rootGraph ?? app.graph, "GtR_ClassCondition")) {
        const menu = node.widgets.find((widget) => widget.name === "class_name");
        if (!menu.options.values.includes(menu.value)) menu.value = DEFAULT;
    }
}

app.registerExtension({
    name: "gtr-mar.inputs",
    nodeCreated(node) {
        if (node.comfyClass in COUNTED) {
            onChange(node, () => refit(node));
            refit(node);
            const before = node.onConfigure;
            node.onConfigure = function (...stored) {
                before?.apply(this, stored);
                showStored(this);
            };
        }
        if (node.comfyClass === "GtR_LoadMAR") onChange(node, switchModel);
        if (node.comfyClass === "GtR_ClassCondition") {
            onChange(node, () => followModel(node));
            const before = node.onConnectionsChange;
            node.onConnectionsChange = function (...change) {
                before?.apply(this, change);
                if (!app.configuringGraph) setTimeout(switchModel);
            };
        }
    },
    afterConfigureGraph: follow,
});

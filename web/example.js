// Puts the image of the template demo_inpaint into ComfyUI's input folder when a workflow that loads it is opened.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const NAME = "gtr_example.png";

/** The list of files that Load Image offers, as the server declared it. */
function offered() {
    const input = window.LiteGraph.registered_node_types.LoadImage?.nodeData?.input?.required?.image;
    return Array.isArray(input?.[0]) ? input[0] : input?.[1]?.options;
}

async function upload() {
    const image = await fetch(new URL(NAME, import.meta.url));
    if (!image.ok) return false;
    const body = new FormData();
    body.append("image", new File([await image.blob()], NAME, { type: "image/png" }));
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    return answer.ok;
}

app.registerExtension({
    name: "gtr-mar.example",
    async beforeConfigureGraph(graph) {
        const wanted = graph?.nodes?.some((node) => node.type === "LoadImage" && node.widgets_values?.[0] === NAME);
        const files = offered();
        if (wanted && files && !files.includes(NAME) && await upload()) files.push(NAME);
    },
});

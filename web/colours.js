// Gives the pack's wires colours of their own, in both renderers of nodes; a palette that names one of them wins.
import { app } from "../../scripts/app.js";

const COLOURS = {
    MAR_MODEL: "#8e63d6",
    GTR_SCHEDULE: "#26c6da",
    GTR_FTS: "#c0ca33",
    GTR_CACHE: "#a1887f",
    GTR_STEPS: "#f06292",
};

/** Keep the colours in a table that every change of palette fills with blanks. */
function keep(table) {
    for (const [type, colour] of Object.entries(COLOURS)) {
        let chosen = table[type] || colour;
        Object.defineProperty(table, type, {
            configurable: true,
            enumerable: true,
            get: () => chosen,
            set: (value) => { chosen = value || colour; },
        });
    }
}

app.registerExtension({
    name: "gtr-mar.colours",
    setup() {
        keep(app.canvas.default_connection_color_byType);
        keep(app.canvas.constructor.link_type_colors);
        // A palette sets these on the root element itself, which goes before this sheet.
        const sheet = document.createElement("style");
        const rules = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
        sheet.textContent = `:root { ${rules.join(" ")} }`;
        document.head.append(sheet);
    },
});

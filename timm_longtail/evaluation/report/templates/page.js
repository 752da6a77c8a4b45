'use strict';
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---------------------------------------------------------------- a click on a heading sorts
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (Number.isNaN(x) && Number.isNaN(y)) return a.localeCompare(b);
    if (Number.isNaN(x)) return 1;
    return Number.isNaN(y) ? -1 : x - y;
  };
  for (const table of all('table.sortable')) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
      const isNumber = head.classList.contains('number');
      const was = head.getAttribute('aria-sort');
      const ascending = was ? was === 'descending' : !isNumber;  // figures: the largest first
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');

      const text = (a, b) => isNumber || a.cells[column].dataset.value
        ? compare(valueOf(a, column), valueOf(b, column))
        : valueOf(a, column).localeCompare(valueOf(b, column), undefined, {numeric: true});
      const rows = [...table.tBodies[0].rows].sort((a, b) => ascending ? text(a, b) : text(b, a));
      table.tBodies[0].append(...rows);
    }));
  }

  // --------------------------------------------------- a word, and a group, choose rows of a table
  const choose = (id) => {
    const word = document.querySelector(`input[data-filter="${id}"]`).value.toLowerCase();
    const group = document.querySelector(`select[data-filter="${id}"]`).value;
    const rows = [...document.getElementById(id).tBodies[0].rows];
    let count = 0;
    for (const row of rows) {
      row.hidden = !(row.textContent.toLowerCase().includes(word) && (!group || row.dataset.group === group));
      count += !row.hidden;
    }
    document.querySelector(`[data-count="${id}"]`).textContent = count < rows.length ? `${count} of ${rows.length}` : '';
  };
  for (const field of all('[data-filter]')) {
    field.addEventListener('input', () => choose(field.dataset.filter));
  }

  // ------------------------------------------------------------ a legend switches its curves on and off
  for (const key of all('[data-toggle]')) {
    key.addEventListener('click', () => {
      const name = key.dataset.toggle, isOn = key.getAttribute('aria-pressed') === 'false';
      for (const other of all(`[data-toggle="${name}"]`)) other.setAttribute('aria-pressed', isOn);
      for (const curve of all(`[data-key="${name}"]`)) curve.classList.toggle('off', !isOn);
    });
  }

  // ------------------------------------------------------- what lies under the pointer is described
  const tip = document.getElementById('tip');
  const show = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, window.innerWidth - box.width - 8);
    const above = event.clientY - box.height - 12;
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${above < 4 ? event.clientY + 18 : above}px`;
  };

  const confusions = new Map();
  for (const script of all('script[data-of-confusion]')) {
    const {titles, cells} = JSON.parse(script.textContent);
    const percent = new Map(cells.map(([row, column, share]) => [row * titles.length + column, share]));
    confusions.set(script.dataset.ofConfusion, {titles, percent});
  }
  const describeCell = (svg, event) => {
    const {titles, percent} = confusions.get(svg.dataset.confusion);
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const column = Math.floor(place.x * titles.length / 100), row = Math.floor(place.y * titles.length / 100);
    const cursor = svg.querySelector('.cursor');
    if (Math.min(row, column) < 0 || Math.max(row, column) >= titles.length) {
      cursor.setAttribute('x', -200);
      return null;
    }
    cursor.setAttribute('x', 100 * column / titles.length);
    cursor.setAttribute('y', 100 * row / titles.length);
    const share = percent.get(row * titles.length + column) ?? 0;
    return `${titles[row]}\npredicted as ${titles[column]}: ${share} %`;
  };

  document.addEventListener('pointermove', (event) => {
    const element = event.target.closest?.('[data-tip], [data-confusion]');
    const text = element && (element.dataset.tip ?? describeCell(element, event));
    if (text) show(event, text);
    else tip.hidden = true;
  });
  document.addEventListener('scroll', () => { tip.hidden = true; }, {passive: true});
})();
